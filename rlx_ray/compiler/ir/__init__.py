"""What both backends share: HIR (blocks of a model), MIR (an op DAG), expressions, memory."""
