"""One digital twin per patient: physiological state with its uncertainty, kept current by every observation."""
