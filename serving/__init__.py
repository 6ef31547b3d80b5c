"""The edge: HTTP, the store, the archive and the command line; the one place where all parts are put together."""
