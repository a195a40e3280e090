"""Users and their birthdays."""
