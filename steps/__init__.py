"""hyperpod-lora: fine-tune a language model with LoRA, one room per stage of the pipeline (see README, "How it works")."""
