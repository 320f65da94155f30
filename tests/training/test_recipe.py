import dataclasses


def test_a_stage_speaks_in_a_format_of_its_own(small):
    """The system's text is of the system's format: captions, say, have no place for one."""
    told = dataclasses.replace(small, system=dataclasses.replace(small.system, system_prompt="Be brief."))
    stage = told.stages[0]
    assert told.system_in(stage).chat_template.system == "Be brief."
    template = told.system_in(dataclasses.replace(stage, template="plain")).chat_template
    assert (template.name, template.system) == ("plain", None)
