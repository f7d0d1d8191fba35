"""`python -m train.diagnose`: up to which learning rate a recipe trains, measured at several sizes and forecast."""
