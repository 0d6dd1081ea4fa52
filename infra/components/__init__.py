"""One component or dynamic resource a file."""
