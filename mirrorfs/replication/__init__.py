"""The uploader: takes names from the journal and makes the bucket equal to what the datastore holds under them."""
