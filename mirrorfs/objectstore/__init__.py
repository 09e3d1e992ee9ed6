"""S3-compatible object stores: put, copy, confirm, get, list, delete, retain; checksums, quirks, waiting out failures.

The only place that imports boto3.
"""
