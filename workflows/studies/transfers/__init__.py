"""Transfer speed against the size of models at each site: measurement, table, fit and figures."""
