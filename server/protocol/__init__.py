"""Protocol of a run: who may push, for which model, and when a round closes. Every room may import it.

It does no I/O: `Machine.handle` takes an event and returns its effects, and time is an argument of each
event (`at`, seconds of one monotonic clock; `wake_at` says when the next `Tick` is due). It imports
nothing but the standard library, so a test can play any history. An event that is refused changes nothing,
but for what adaptive waiting and deadlines learn from a vector that came too late. Every decision has the
sentence that explains it.

`machine` is the state machine, `admission` refuses events, `quorum` says whether a round is over and why,
`state` and `events` are the data, `resumption` is the state that another process of the server begins with,
`adaptive_waiting` says how long a round waits for those who are late, `deadlines` sets the deadline of a
round where nobody else does, and `window` has the members of a round whose rows are not kept whole.

Rounds. A run is a sequence of rounds, and a round has two phases:

    OPEN    --Close-->  CLOSED (somebody aggregates)  --Committed or Skipped-->  the next round, or the end
    OPEN    --Skip-->   the next round, or the end

Answers. A worker pushes: `Offer` when its upload begins, `Push` when the whole vector has arrived and is
sound. The first complete vector counts; another one for the same model is refused (`COUNTED`), because a
worker that was started again may well compute another one. Or it proves itself faulty: `Fault`, for what
no honest program sends, whatever crashed or was tried again. It spends one of the f. A worker that does
neither is missing, absent (`Absent`: no process of it is connected) or has declined (`Decline`). None of
these proves anything, and none spends one of the f.

Closing. A round closes when nobody is waited for any more, when those who are late were waited for long
enough (`adaptive_waiting`), or at its deadline; and only if the quorum has answered and the condition of
the rule (`requires`) holds for the rows that came. Workers that declined, are absent, or were withdrawn
are not waited for. Without enough the policy decides at the deadline: wait, skip the round, or fail.
`wait` skips as well where waiting cannot help. The clock of the first round starts with the first worker
that shows up, the clock of every other round when it opens.

Resumption. A state that is kept between two rounds is that of another process later. What depends on
connections and on the clock of one process is not part of it (`resumption`): all workers connect anew, and
the first round waits for them as round 0 does. So a crash of the server decides about nobody.

Uploads. An upload is open until `Push` or `Gone`, also beyond its round, and its worker is BUSY until
then: nobody writes to a row that is being aggregated, and a stalled upload delays its owner only.

Revocation. A worker whose certificate was revoked is withdrawn (`Withdraw`): its pull, its invitation and
the vector of it that waits are gone, and an open upload of it cannot count. It is treated as absent until
it comes back with another certificate. A round that is being aggregated is completed with its vector.

Without invitations (`sync`) whoever asks gets the model of the open round, and every worker may push for
it.

By invitation (the other participations) a worker asks for a model (`Ready`) and is parked until the
selection of the run takes it. Then it is invited: its pull is answered with the model of the open round,
and for that model it may push, once.

    parked  --Invite-->  invited  --Offer, Push-->  held  --Close-->  taken  --Committed, Skipped-->  free
                         invited  --Left-->  free          too old  -->  free
    Fault: out until the next round opens

That is NOTIFY-ACK of "ASAP: Asynchronous Approximate Data-Parallel Computation" (Kadav and Kruus, 2016),
in its strong form: the push is the notification, and the answer to the next pull is the acknowledgement,
which comes after the vector was used. So there is at most one vector of a worker that was not used; its
row is written by one upload at a time, only while no vector is held there, and read only while one is.
Whatever is lost on the way is said again: an invitation is given again, and a push with the round and the
digest of the one that is held, or was the last one, is a duplicate. While a round is being aggregated
nobody is invited; vectors may arrive, for the next. A vector may be `tau` rounds old when it is used; one
that is too old while it waits for its turn is dropped, and its worker is free for the current model.
"""
