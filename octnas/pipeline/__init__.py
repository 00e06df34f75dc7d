"""The story of a run, stage by stage; the only place that knows all parts."""
