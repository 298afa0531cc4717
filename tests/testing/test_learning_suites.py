from pppml_core.builtin.plugin import pppml_personalizations, pppml_tasks
from pppml_core.testing.personalization_suite import PersonalizationSuite
from pppml_core.testing.task_suite import TaskSuite


class TestFedAvg(PersonalizationSuite):
    component = pppml_personalizations()[0]


class TestFedAvgWithMomentum(TestFedAvg):
    config = {"server_optimizer": {"use": "sgd", "momentum": 0.9}}


class TestFedAvgWithAdam(TestFedAvg):
    config = {"server_optimizer": {"use": "adam", "lr": 0.1}}


class TestLocalOnly(PersonalizationSuite):
    component = pppml_personalizations()[1]


class TestTinyClassification(TaskSuite):
    component = pppml_tasks()[0]


class TestTinySegmentation(TestTinyClassification):
    config = {"kind": "segmentation"}
