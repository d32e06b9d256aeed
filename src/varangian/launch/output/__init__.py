"""Output of a run: its folder, records, log, the saved model, temporary files.

Nothing here waits for whoever reads: output goes through a bounded queue. The rest of `varangian.launch`
and the commands import it; it knows no network.
"""
