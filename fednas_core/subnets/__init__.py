"""Subnets of a supernet: taken out (extract, views), put back (merge), made to run (networks)."""
