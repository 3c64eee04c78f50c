"""From a data set to tokenised rows and the order of the whole run. The door is `stage.prepare`."""
