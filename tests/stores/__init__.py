"""Real object stores, and a proxy that makes them fail, for the tests and the demo."""
