"""Limits of keys that hold for the whole service: what replicas and the rollout actor say to each other, and decide.

One ``QuotaBook`` a service lends tokens (a request each) and permits (a request in flight each) to one ``QuotaShare`` a
replica. Both are state machines: time is injected, nothing here waits, sends or counts for anybody else.
"""
