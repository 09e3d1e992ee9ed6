"""The web page: what is served to whom, and how it looks in a browser."""
