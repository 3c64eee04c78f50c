"""How good an answer is: functions of texts. Pure."""
