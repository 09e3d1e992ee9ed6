"""Whatever is read that others wrote: anything at all gives a value, or the error that is documented."""
