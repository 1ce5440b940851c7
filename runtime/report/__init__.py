"""What a user gets besides the mask: lesions, statistics, pictures, a page to read or print."""
