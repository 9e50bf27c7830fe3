"""The report and its sections: all prose about what was measured."""
