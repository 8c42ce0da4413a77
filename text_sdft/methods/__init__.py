"""One function a method: self-distillation, and what it is compared with."""
