"""Kubernetes: a run as Jobs, for kubectl and kustomize.

`pods` has the pod of a task, `objects` what stands around the pods, `job_set` the overlay for clusters with
JobSet, and `render` the files.
"""
