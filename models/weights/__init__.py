"""The weights wing: a file on a disk in, a verified release out."""
