"""Status: the page that shows an operator the stack at a glance."""
