"""Images: files, model families, encoding, features."""
