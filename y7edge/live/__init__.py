"""What a robot shows and keeps: the web page, recordings, images that are worth labelling."""
