"""Ray: a local cluster, and searches through Ray Tune.

Nothing is imported here, so that `import octnas.cluster` does not wait for Ray.
"""
