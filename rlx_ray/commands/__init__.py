"""Commands of `rlx-ray`: one module each, with `add(subparsers)` and a function that runs it."""
