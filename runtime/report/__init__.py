"""What a user gets besides the mask: lesions, statistics, pictures, a page to read or print.

Imports results, bundle/, volume/, util/, errors.
"""
