"""The paper's protocol: ways of picking blocks, run side by side, scored on labelled frames."""
