"""The commands of ``steelyard``, one file a group. Heavy imports stay inside the commands: ``--help`` must be quick."""
