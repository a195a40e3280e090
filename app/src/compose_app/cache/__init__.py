"""Cache: values with a time to live in Redis."""
