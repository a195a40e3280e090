"""Coupons: each is claimed as often as there are pieces of it, and once by a user at most."""
