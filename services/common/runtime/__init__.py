"""What touches the world for every service: clock, settings, logs, Kafka, HTTP, gRPC, lifecycle."""
