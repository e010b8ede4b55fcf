"""The prebuild job: matrix, plan and report are pure; build runs a capped child; fanout is Ray."""
