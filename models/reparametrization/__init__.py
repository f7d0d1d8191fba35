"""Reparametrizations: what keeps weights, or what is made of them, in bounds while they are trained; one file each."""
