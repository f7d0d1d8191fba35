"""What findings are made of: the arms of a sweep, values with errors and trends, probes over a run, figures."""
