"""Downloads: fetch an image into a file, resume it, and hash, inspect and decompress it while it grows."""
