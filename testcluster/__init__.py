"""A real one-node Kubernetes with Knative Serving, made by `scripts/cluster up` for this project's tests.

Upstream's own programs and manifests, compiled and read from package registries, in namespaces of their own on the
machine that runs the tests. It does not promise security, durability or more than one node; see docs/test-cluster.md.
"""
