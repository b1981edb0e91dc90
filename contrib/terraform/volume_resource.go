package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

const gib = 1 << 30

// volumeResource is a volume with a disk image.
type volumeResource struct{ client *client }

type volumeModel struct {
	Name      types.String    `tfsdk:"name"`
	Target    types.String    `tfsdk:"target"`
	Image     types.String    `tfsdk:"image"`
	ImageURL  types.String    `tfsdk:"image_url"`
	ImageType types.String    `tfsdk:"image_type"`
	Checksum  types.String    `tfsdk:"checksum"`
	SizeGB    types.Int64     `tfsdk:"size_gb"`
	Online    types.Bool      `tfsdk:"online"`
	Timeout   types.Int64     `tfsdk:"timeout"`
	CloudInit *cloudInitModel `tfsdk:"cloud_init"`
	Path      types.String    `tfsdk:"path"`
	SizeBytes types.Int64     `tfsdk:"size_bytes"`
	Digest    types.String    `tfsdk:"digest"`
	JobID     types.String    `tfsdk:"job_id"`
}

type cloudInitModel struct {
	UserData      types.String `tfsdk:"user_data"`
	MetaData      types.String `tfsdk:"meta_data"`
	NetworkConfig types.String `tfsdk:"network_config"`
}

func (*volumeResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_volume"
}

func (r *volumeResource) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	if req.ProviderData != nil {
		r.client = req.ProviderData.(*client)
	}
}

func (*volumeResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var given volumeModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &given)...)
	if given.Image.IsUnknown() || given.ImageURL.IsUnknown() || resp.Diagnostics.HasError() {
		return
	}
	if given.Image.IsNull() == given.ImageURL.IsNull() {
		resp.Diagnostics.AddError("Which image?", "Give image, the name of one, or image_url.")
	}
}

// ModifyPlan refuses a smaller size: to replace the volume for that would lose its data.
func (*volumeResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.State.Raw.IsNull() || req.Plan.Raw.IsNull() {
		return
	}
	var before, after types.Int64
	resp.Diagnostics.Append(req.State.GetAttribute(ctx, path.Root("size_gb"), &before)...)
	resp.Diagnostics.Append(req.Plan.GetAttribute(ctx, path.Root("size_gb"), &after)...)
	if !after.IsUnknown() && after.ValueInt64() < before.ValueInt64() && len(resp.RequiresReplace) == 0 {
		words := fmt.Sprintf("It has %d GiB. To make it anew with %d GiB, and lose its data, use -replace.",
			before.ValueInt64(), after.ValueInt64())
		resp.Diagnostics.AddAttributeError(path.Root("size_gb"), "A volume never shrinks", words)
	}
}

func (r *volumeResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var model volumeModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, done := context.WithTimeout(ctx, time.Duration(model.Timeout.ValueInt64())*time.Second)
	defer done()
	made, err := r.make(ctx, model.request())
	if err != nil {
		resp.Diagnostics.AddError("The volume "+model.Name.ValueString()+" could not be made", err.Error())
		return
	}
	model.take(made)
	resp.Diagnostics.Append(resp.State.Set(ctx, &model)...)
}

// make returns the new volume. A volume that exists is never replaced.
func (r *volumeResource) make(ctx context.Context, body map[string]any) (*volume, error) {
	var planned plan
	if err := r.client.call(ctx, answerTimeout, http.MethodPost, "plan", body, &planned); err != nil {
		return nil, err
	}
	if planned.Replaces != nil {
		id := fmt.Sprintf("%s/%s", planned.Target, body["volume_name"])
		return nil, fmt.Errorf("it exists already as %s; import it as %q, or remove it", planned.Replaces.Path, id)
	}
	if len(planned.Refusals) > 0 {
		reasons := make([]string, len(planned.Refusals))
		for i, one := range planned.Refusals {
			reasons[i] = one.Message
		}
		return nil, fmt.Errorf("%s", strings.Join(reasons, "; "))
	}
	id, err := r.client.submit(ctx, body)
	if err != nil {
		return nil, err
	}
	done, err := r.client.wait(ctx, id)
	if err != nil {
		return nil, err
	}
	found, err := r.client.find(ctx, done.Volume.Target, done.Volume.Name)
	if err == nil && found == nil {
		err = fmt.Errorf("job %s made it, but it is gone", id)
	}
	return found, err
}

func (r *volumeResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var model volumeModel
	resp.Diagnostics.Append(req.State.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	found, err := r.client.find(ctx, model.Target.ValueString(), model.Name.ValueString())
	switch {
	case err != nil:
		resp.Diagnostics.AddError("The volume "+model.Name.ValueString()+" could not be read", err.Error())
	case found == nil:
		resp.State.RemoveResource(ctx)
	default:
		model.take(found)
		resp.Diagnostics.Append(resp.State.Set(ctx, &model)...)
	}
}

// Update grows the volume. All other changes need a new one, or are about later runs only.
func (r *volumeResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var model, before volumeModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &model)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &before)...)
	if resp.Diagnostics.HasError() {
		return
	}
	target, name := before.Target.ValueString(), before.Name.ValueString()
	if model.SizeGB.ValueInt64() > before.SizeGB.ValueInt64() {
		limit := time.Duration(model.Timeout.ValueInt64()) * time.Second
		body := map[string]any{"volume_size_gb": model.SizeGB.ValueInt64(), "online": model.Online.ValueBool()}
		var ignored map[string]any
		if err := r.client.call(ctx, limit, http.MethodPost, volumePath(target, name)+"/resize", body, &ignored); err != nil {
			resp.Diagnostics.AddError("The volume "+name+" could not grow", err.Error())
			return
		}
	}
	found, err := r.client.find(ctx, target, name)
	if err != nil || found == nil {
		resp.Diagnostics.AddError("The volume "+name+" could not be read", fmt.Sprint(err))
		return
	}
	model.take(found)
	resp.Diagnostics.Append(resp.State.Set(ctx, &model)...)
}

func (r *volumeResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var model volumeModel
	resp.Diagnostics.Append(req.State.Get(ctx, &model)...)
	if resp.Diagnostics.HasError() {
		return
	}
	var ignored map[string]any
	address := volumePath(model.Target.ValueString(), model.Name.ValueString())
	err := r.client.call(ctx, changeTimeout, http.MethodDelete, address, nil, &ignored)
	if err != nil && !isStatus(err, http.StatusNotFound) {
		resp.Diagnostics.AddError("The volume "+model.Name.ValueString()+" could not be removed", err.Error())
	}
}

func (*volumeResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	target, name, found := strings.Cut(req.ID, "/")
	if !found || target == "" || name == "" {
		resp.Diagnostics.AddError("The id of a volume is TARGET/NAME", fmt.Sprintf("%q is none.", req.ID))
		return
	}
	resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root("target"), target)...)
	resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root("name"), name)...)
}

// request returns the body of the request for the job.
func (m *volumeModel) request() map[string]any {
	body := map[string]any{}
	texts := map[string]types.String{
		"volume_name": m.Name, "target": m.Target, "image": m.Image, "image_url": m.ImageURL,
		"image_type": m.ImageType, "checksum": m.Checksum,
	}
	for name, value := range texts {
		if !value.IsNull() && !value.IsUnknown() {
			body[name] = value.ValueString()
		}
	}
	if !m.SizeGB.IsNull() && !m.SizeGB.IsUnknown() {
		body["volume_size_gb"] = m.SizeGB.ValueInt64()
	}
	if m.CloudInit != nil {
		data := map[string]any{"user_data": m.CloudInit.UserData.ValueString()}
		if !m.CloudInit.MetaData.IsNull() {
			data["meta_data"] = m.CloudInit.MetaData.ValueString()
		}
		if !m.CloudInit.NetworkConfig.IsNull() {
			data["network_config"] = m.CloudInit.NetworkConfig.ValueString()
		}
		body["cloud_init"] = data
	}
	return body
}

// take puts what the server says about the volume into the model.
func (m *volumeModel) take(found *volume) {
	m.Target = types.StringValue(found.Target)
	m.Path = types.StringValue(found.Path)
	m.SizeBytes = types.Int64Value(found.SizeBytes)
	m.SizeGB = types.Int64Value(found.SizeBytes / gib) // LVM rounds up by less than a GiB
	m.Digest = types.StringValue(found.Digest)
	m.JobID = types.StringValue(found.JobID)
}
