"""Public fixtures and doubles for tests; nothing in the product imports them."""
