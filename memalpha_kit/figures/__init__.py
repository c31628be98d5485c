"""Tables and figures from saved numbers. No model runs here, and no checkpoint is needed."""
