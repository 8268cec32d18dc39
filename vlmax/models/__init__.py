"""The parts that systems are made of: layers, encoders, connectors, decoders."""
