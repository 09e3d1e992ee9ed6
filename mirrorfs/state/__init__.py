"""What is known of the bucket, by subject."""
