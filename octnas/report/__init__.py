"""What a run found: tables, figures and one HTML page; plotly loads with `report.page`."""
