"""Blood cell classification: BloodMNIST, other MedMNIST files, and npz files of several sources."""
