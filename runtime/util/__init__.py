"""Files that appear whole or not at all, and packages that may be missing. Imports errors."""
