"""The rollout protocol as pure state machines: events in, effects out; no clock, no network, no Ray.

One actor reconciles the registry; every replica is a member that polls it; a ledger of write-once keys decides.

1.  Generations only grow; a rollback is a new one. Each is claimed by put-if-absent under the actor's incarnation;
    acknowledgements carry both, stale ones are ignored.
2.  ``decision/<g>`` is first-writer-wins: COMMIT or ABORT.
3.  A new life of the actor claims its incarnation, then reads claims and members, puts ABORT for what is undecided and
    finishes what is committed. An earlier life finds out from its next write that it is deposed (``ledger.py``).
4.  A replica loads the committed generation, then asks to be admitted. It counts from the request on, is recorded
    durably, then answered. Old generations are refused; nobody is admitted between HOLD and GO.
5.  Silence never removes a member; proven death does, after a margin. Whoever polls after the proof is alive.
6.  HOLD only after all have prepared and all polled within the last second. A missing acknowledgement at 0.6 of the
    deadline: ABORT, release, back off.
7.  The engine checks the hold and takes its lease in the same loop tick.
8.  When all hold: put COMMIT; only if it wins, GO.
9.  A replica whose deadline passes puts ABORT and obeys what stands. It never decides alone.
10. Ledger unreachable: hold on, ask again; after a limit refuse requests, never answer with old weights.
11. Not held and the actor lost: serve on; nobody can commit without this replica. Strict mode: serve only while the
    ledger has counted it as a member within ``isolation_s``; a dead member is struck off the ledger and waited for that
    long, and a margin, before anybody commits without it; so does a new life of the actor, for those it cannot know of.
12. A failed preparation, or several deaths in the middle of it, reject the version; a transient failure waits.
    The first attempt ever is bounded in the same way, by the replicas that were told to load it. What was rejected for
    good stays so through every restart, in the durable record, until somebody promotes it anew.
13. A rollback takes back the latest promotion. One that is not committed yet is given up in any phase, and what serves
    stays; else what served before comes back, but never a version that was itself rolled back from.
14. A canary step begins as a commit does, in a hold of all, so that a client whom the candidate has answered is not
    answered by the old version again before the attempt ends. Commit only after every trial step ended well; an abort
    ends the trial everywhere. Three exceptions remain, for clients of the canary only: a replica that joins meanwhile
    serves the committed version until it has prepared; an abort ends the trial replica by replica; and of an actor that
    dies between telling two replicas that a step begins, one is left with the canary until the actor is back, while the
    other's hold runs out and it serves the committed version to all.
15. A version on probation that breaks its limits, or with which too many replicas die, is refused for good, and the one
    before it comes back. What its promotion waived does not count against it, then or in a trial; its errors always do.

``fake_fleet`` runs all of it under a hostile scheduler and checks the promises after every event.
"""
