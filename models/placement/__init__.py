"""Where norms stand around a sublayer and how its output joins the residual stream; one file per family."""
