"""One module per label format, and the records that they are read into."""
