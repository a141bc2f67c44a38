"""The request wing: bytes of an image in, boxes out."""
